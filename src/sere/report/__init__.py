"""Reports: records of measurements and a table become one HTML file that can be sent to a colleague."""
