"""From predictions to scores, tables and pictures."""
