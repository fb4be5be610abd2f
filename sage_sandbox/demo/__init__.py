"""What ``sage-sandbox demo`` runs and shows: two templates, a small project, and the bait for the hostile one."""
