"""The world the miniature knows: objects, colours, scenes; in words, arrays and pictures."""
