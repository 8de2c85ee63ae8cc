"""Public data sets whose rows are series: many dates of a sensor."""
