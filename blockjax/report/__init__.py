"""What a person sees: commands, progress, tables, figures."""
