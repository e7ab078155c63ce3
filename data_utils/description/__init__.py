"""What describes a data set: statistics, figures, tokens of samples."""
