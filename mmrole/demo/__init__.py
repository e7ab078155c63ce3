"""The small world of `scripts/demo.sh`: invented characters, drawn pictures, dialogues, a teacher of rules, checks."""
