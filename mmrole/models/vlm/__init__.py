"""transformers' vision-language models as families: any checkpoint that its auto classes load without remote code."""
