"""What a map of classes tells: areas of all of it and inside polygons."""
