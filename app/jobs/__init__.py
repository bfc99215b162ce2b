"""Jobs: taken, waited for, listed, cancelled and deleted."""
