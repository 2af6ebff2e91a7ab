"""How Sphinx builds the site. `make site` stages its pages first (stage.py), so that the source folder is build/site/source.

Sphinx with MyST-NB, and Furo as the theme: all of it comes from Python packages, so an installed environment builds offline,
and no page asks another server for anything. (MyST's own engine, `mystmd`, needs Node and fetches its templates as it builds.)
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

project = "Latent Diffusion, from scratch"
author = copyright = "the Latent Diffusion, from scratch authors, MIT licence"
version = release = installed("latent-diffusion-course")
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml", "docstrings", "chapters", "finish"]
exclude_patterns = ["LICENSE"]
smartquotes = False                         # "" is the empty caption

# chapters: what they printed and drew when they were built; nothing is executed here
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}                       # sliders need a kernel; their pictures are there without
nb_output_stderr = "show"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence", "attrs_inline"]
myst_dmath_double_inline = True
myst_heading_anchors = 4                    # README's links to its own headings
myst_update_mathjax = False
myst_links_external_new_tab = False
suppress_warnings = ["myst.strikethrough", "misc.highlighting_failure"]

html_math_renderer = "mathml"               # MathML made while building (mathml.py): no script, no server
html_theme = "furo"
html_title = project
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_favicon = str(HERE / "static" / "favicon.svg")
html_copy_source = False
html_show_sourcelink = False
html_use_index = True
html_domain_indices = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#005a9c", "color-brand-content": "#005a9c",
                            "color-foreground-muted": "#595e63", "color-api-pre-name": "#595e63"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ff", "color-brand-content": "#7cc4ff",
                           "color-foreground-muted": "#9fa3a8", "color-api-pre-name": "#a8acb1"},
}

# the library's docstrings: plain text, made into reStructuredText by docstrings.py
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False         # torch's own texts about `forward` say nothing here
autodoc_typehints = "signature"
autodoc_preserve_defaults = True            # as written in the source
autodoc_default_options = {"members": True}
add_module_names = False
python_maximum_signature_line_length = 88
viewcode_line_numbers = False
