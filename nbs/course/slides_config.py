"""For `jupyter nbconvert --to slides slides.ipynb --config slides_config.py`: each heading begins a slide."""
from nbconvert.preprocessors import Preprocessor

c = get_config()  # noqa: F821: nbconvert defines it
# pictures and tables, and no code
c.SlidesExporter.exclude_input = True
c.SlidesExporter.exclude_input_prompt = c.SlidesExporter.exclude_output_prompt = True


class ByHeading(Preprocessor):
    """Cleaning takes slide metadata out of notebooks, so they are put back here."""
    def preprocess(self, nb, resources):
        for cell in nb.cells:
            if "Open in Colab" in cell.source: kind = "skip"
            else: kind = "slide" if cell.source.startswith("#") and cell.cell_type == "markdown" else "-"
            cell.metadata["slideshow"] = {"slide_type": kind}
        return nb, resources


c.SlidesExporter.preprocessors = [ByHeading]
