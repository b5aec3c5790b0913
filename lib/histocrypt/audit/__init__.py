"""What a model or a synthetic set reveals about the patients behind it: attacks, controls, figures with intervals."""
