"""What a connection that means harm costs others."""
