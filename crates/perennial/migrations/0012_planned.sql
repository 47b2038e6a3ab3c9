-- Specifications say of which plan a pod was made, and have secrets. Nothing changes in tables: the number keeps earlier programs, which do not
-- know these fields, away from rows that have them.
SELECT 1;
