"""What happens to a job, told as it happens, with previews of its running images."""
