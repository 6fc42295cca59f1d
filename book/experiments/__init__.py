"""The scripts behind the chapters: data, models, training."""
