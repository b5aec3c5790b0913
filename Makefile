# The documentation as a site: outputs/docs/index.html. Install its tools first: venv/bin/pip install -e '.[docs]'
.PHONY: docs
docs:
	venv/bin/python -m sphinx -q -j auto docs outputs/docs
	@echo "outputs/docs/index.html"
