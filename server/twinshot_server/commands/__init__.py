"""The commands of `twinshot`, one a module. What needs torch is imported when a command runs."""
