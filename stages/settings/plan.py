"""Parameters of the stage `plan`."""

from __future__ import annotations

from kdpipe.dataset.settings import DatasetSettings
from kdpipe.encoding.settings import EncodingSettings
from kdpipe.models.interface import Interface
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Settings
from kdpipe.teacher.settings import ForecastSettings, TeacherSettings
from kdpipe.views.settings import CachedViewSettings


class Plan(Settings):
    """Forecast a store from a pilot of the images: seconds, bytes, and when it pays for itself."""

    dataset: DatasetSettings
    view: CachedViewSettings
    teacher: TeacherSettings
    network: Interface
    encoding: EncodingSettings
    forecast: ForecastSettings
    code: CodeSettings
