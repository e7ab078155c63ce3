"""What knows nothing of MMRole: errors, files, journals, JSON, arguments, tables, launching processes."""
