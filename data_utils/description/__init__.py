"""Description of a data set: statistics, figures, token counts."""
