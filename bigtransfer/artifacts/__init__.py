"""What one stage hands to the next, typed once: read, written, refused in one line."""
