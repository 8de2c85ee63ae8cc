"""Arms x seeds on one data set, and the report of what they show."""
