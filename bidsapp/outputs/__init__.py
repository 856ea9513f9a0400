"""What a subject's run writes: images, tables, model file, settings, figures."""
