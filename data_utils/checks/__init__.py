"""What is wrong with files of MMRole's data: forms, kinds of damage, checks, and repairs of what is mechanical."""
