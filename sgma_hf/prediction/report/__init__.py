"""Maps to look at: a folder of them as one page.

Enter at `maps_page.maps_page`.
"""
