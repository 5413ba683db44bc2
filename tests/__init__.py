"""Tests; the folders mirror the packages of gwq_export."""
