"""The built-in checkpoint's own recipe: a Z-Image in small, trained from nothing on scenes drawn here."""
