"""Who does an attachment: a plugin binary, or code in this process."""
