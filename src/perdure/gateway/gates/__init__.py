"""The gates, one file each. The first that denies ends it; what they ask of a grant adds up.

Schema (``schema``), authority (``authority``), flow (``flow``), conduct (``conduct``), external judge (``webhook``) and hold
(``hold``) are asked before the transaction of the intent. Containment (``containment``) and budget (``budget``) are asked within
it: only there can nobody overtake them.
"""
