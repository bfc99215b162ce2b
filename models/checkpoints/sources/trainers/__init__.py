"""Files of other trainers, which hold weights without a configuration, as folders."""
