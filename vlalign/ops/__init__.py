"""Differentiable maths without opinion: the self-reducing table of scores, and gathering over ranks."""
