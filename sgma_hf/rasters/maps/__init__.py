"""What a map of classes tells: its areas, of all of it and inside polygons, and its patches as polygons."""
