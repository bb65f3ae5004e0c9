"""Every operator from its definition in plain torch: the fallback on any device, and the reference.

Shapes are those of the normal form: an input is ``(*lead, C, *size)``, a template
``(*lead, C, *window)``, a score map ``(*lead, *output)``; the channel axis C is part
of the window. Sums run in float64 where the device has it. An element affects only the windows that
contain it. `docs/math.md` derives the formulas.
"""
