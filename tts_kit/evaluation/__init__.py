"""Evaluation: metrics of clips, WER, statistics, scoring of rows."""
