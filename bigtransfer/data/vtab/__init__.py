"""The 19 tasks of VTAB-1k, made of the sets as their authors distribute them.

`material`: files of a folder and of the archives in it. `opened`: what a set holds. `photos`,
`arrays`, `sprites`, `norb`, `scenes`, `frames`, `retinopathy`: one family of formats each. `tasks`:
the 19, and which images each takes. `order`: in which order. `prepare`: writes a task.
"""
