"""What is known of a network and what is done to it for a while: sites, units, ablation, states, replay."""
