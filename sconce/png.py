"""Pictures as bytes."""

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG."""
    content = BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
