"""What maps hold: tables of their areas, and a folder of them as one page.

Enter at `maps_page.maps_page`.
"""
