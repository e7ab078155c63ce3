"""Records, prompts, requests and replies, profiles, dialogues, images, splits and scores."""
