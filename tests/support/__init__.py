"""What several tests share: data, models, cases, files of other programs, helpers."""
