"""The site: `sphinx-build -W -c .github/docs nbs OUT_FOLDER`. Pages and notebooks are in nbs/."""

import fastai.vision.all  # noqa: F401  (patches Learner, which the API shows)

import mixaug

project, author, release = "mixaug", "the mixaug authors", mixaug.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["runs"]
html_theme, html_title = "furo", f"mixaug {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source, html_show_sphinx, html_show_copyright = False, False, False

nb_execution_mode = "off"  # the notebooks are stored with their outputs, which .ci/run checks
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more
add_module_names = False
napoleon_use_rtype = False
