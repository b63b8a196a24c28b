"""What the machine gives: files replaced whole, child processes with limits, memory, interrupts, TOML. No torch."""
