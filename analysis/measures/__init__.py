"""How alike the tokens of a sample are: pure functions of token matrices (batch, tokens, width), one value per sample.

`mask` (batch, tokens) is true where a token counts; without it all do. Everything is computed in fp32, also under
autocast, whatever the precision of the tokens. Where a measure is undefined (fewer than two tokens) its value is NaN,
and a NaN among the tokens that count gives a NaN. Notation: X has n tokens x_i that count, `mean` is their mean token,
x^_i = x_i / ||x_i||, and ||.|| of a matrix is the Frobenius norm.
"""

from .attention import attention_entropy as attention_entropy
from .attention import second_singular_value as second_singular_value
from .bound import projection_norms as projection_norms
from .bound import rate_bound as rate_bound
from .bound import smoothing_rate as smoothing_rate
from .spectra import dirichlet_energy as dirichlet_energy
from .spectra import ring_count as ring_count
from .spectra import spectrum as spectrum
from .tokens import effective_rank as effective_rank
from .tokens import energy_rank as energy_rank
from .tokens import entropy_rank as entropy_rank
from .tokens import high_frequency_gain as high_frequency_gain
from .tokens import high_frequency_norm as high_frequency_norm
from .tokens import high_frequency_ratio as high_frequency_ratio
from .tokens import inliers as inliers
from .tokens import outlier_share as outlier_share
from .tokens import prefix_similarity as prefix_similarity
from .tokens import relative_residual as relative_residual
from .tokens import singular_values as singular_values
from .tokens import stable_rank as stable_rank
from .tokens import token_norm as token_norm
from .tokens import token_similarity as token_similarity
from .tokens import update_ratio as update_ratio
