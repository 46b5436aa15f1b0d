"""What one looks at when runs have ended: comparisons, diagnoses, rankings, reports."""
