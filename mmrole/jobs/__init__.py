"""Long jobs: inputs, programs, journals, several processes, outputs."""
