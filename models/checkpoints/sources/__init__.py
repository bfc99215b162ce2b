"""Where models come from: folders in any layout, pickles, other trainers' files and the Hub."""
