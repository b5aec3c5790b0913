"""Formats of sections, a module each.

To add one, write ``NAME.py`` here with a `histocrypt.sections.section.Format` called ``FORMAT``, and put the name into
`histocrypt.options.FORMATS`, where it is to be tried.
"""
