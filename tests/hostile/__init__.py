"""Every kind of bad input that memaudit promises to survive, built at run time and given to the real command."""
