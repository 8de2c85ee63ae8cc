"""What a model's own words are worth: its maps of robustness beside the errors of single modalities.

Enter at `reliance.reliance_error_agreement`.
"""
