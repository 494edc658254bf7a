"""The words by which invoices are read, by language: one table each, most telling first."""

from __future__ import annotations

import re

TOTAL = (
    "total amount due", "amount due", "total due", "balance due", "invoice total", "grand total", "total payable",
    "amount payable", "total incl", "credit total", "total credited",
    "rechnungsbetrag", "gesamtbetrag", "zahlbetrag", "zu zahlender betrag", "endbetrag", "gesamt brutto",
    "net à payer", "montant à payer", "total ttc", "montant ttc",
    "total factura", "importe total", "total a pagar",
    "totale fattura", "totale documento", "importo totale", "totale da pagare",
    "te betalen", "totaal incl", "factuurbedrag", "totaalbedrag",
    "do zapłaty", "razem brutto", "kwota brutto",
    "att betala", "summa att betala",
    "valor total", "total da fatura",
    "ご請求金額", "請求金額", "合計金額", "税込合計", "お支払金額",
)  # fmt: skip
TOTAL_WEAK = ("total", "gesamt", "totale", "totaal", "razem", "summa", "合計")
NET = (
    "subtotal", "sub-total", "sub total", "net amount", "net total", "total excl", "zwischensumme", "nettobetrag",
    "summe netto", "netto", "total ht", "montant ht", "sous-total", "base imponible", "imponibile", "subtotaal",
    "totaal excl", "exkl", "小計", "税抜",
)  # fmt: skip
VAT = (
    "vat",
    "gst",
    "sales tax",
    "mwst",
    "ust",
    "umsatzsteuer",
    "mehrwertsteuer",
    "tva",
    "iva",
    "btw",
    "moms",
    "消費税",
)
VAT_IDENTITY = (
    "id",
    "no",
    "nr",
    "number",
    "reg",
    "nummer",
    "nif",
    "partita",
    "intracom",
    "identification",
    "orgnr",
)
DUE = ("due date", "due by", "payment due", "fällig", "échéance", "vencimiento", "scadenza", "vervaldatum", "förfallo",
       "termin", "支払期限", "vencimento", "payable by", "zahlbar bis", "paid by")  # fmt: skip
DATE = ("invoice date", "date of invoice", "credit note date", "rechnungsdatum", "date de facture", "date de la facture",
        "date de facturation", "fecha de factura", "fecha de emisión", "data fattura", "factuurdatum", "data wystawienia",
        "fakturadatum", "data de emissão", "発行日", "請求日", "issued", "datum", "fecha", "data", "date", "日付")  # fmt: skip
NUMBER_LABEL = (
    r"invoice\s*(?:number|no\.?|nr\.?|#|id)", r"credit\s*note\s*(?:number|no\.?|#)", r"tax\s*invoice\s*(?:no\.?|#)",
    r"rechnungs?\s*-?\s*(?:nummer|nr\.?)", r"rechnung\s*(?:nr\.?|nummer)", r"gutschrift\s*(?:nr\.?|nummer)",
    r"num[ée]ro\s*de\s*(?:la\s*)?facture", r"facture\s*(?:n[°o]\.?|num[ée]ro)",
    r"n[úu]mero\s*de\s*factura", r"factura\s*(?:n\.?\s?[ºo°]\.?|n[úu]m\.?)", r"numero\s*fattura", r"fattura\s*(?:n\.?[°º]?|nr\.?)",
    r"factuur\s*(?:nummer|nr\.?)", r"numer\s*faktury", r"faktura\s*(?:vat\s*)?nr\.?", r"faktura\s*-?\s*nummer",
    r"n[úu]mero\s*da\s*fatura", r"fatura\s*n\.?\s?[ºo°]", r"請求書番号", r"請求番号",
)  # fmt: skip
NUMBER_WORD = (r"invoice", r"rechnung", r"facture", r"factura", r"fattura", r"factuur", r"faktura", r"fatura", r"credit\s*note",
               r"請求書")  # fmt: skip
NUMBER_VALUE = (
    r"(?P<number>(?=[A-Za-z0-9./_-]{0,39}\d)[A-Za-z0-9][A-Za-z0-9./_-]{0,39})"  # bounded: no blow-up
)
LABELLED_NUMBER = re.compile(rf"(?:{'|'.join(NUMBER_LABEL)})\s*[:：#]?\s*{NUMBER_VALUE}", re.IGNORECASE)
NAMED_NUMBER = re.compile(rf"\b(?:{'|'.join(NUMBER_WORD)})\s*[:：#]?\s*{NUMBER_VALUE}", re.IGNORECASE)
INVOICE_WORD = re.compile("|".join(NUMBER_WORD), re.IGNORECASE)
CREDIT_WORD = re.compile(
    r"credit\s*note|gutschrift|\bavoir\b|nota\s*de\s*cr[ée]dito|nota\s*di\s*credito|creditnota", re.IGNORECASE
)

STOPWORDS = {
    "en": ["the", "and", "for", "your", "please", "thank", "you", "invoice", "amount", "due", "date", "find", "of", "with", "from", "is", "this", "have", "to", "we"],
    "de": ["der", "die", "das", "und", "für", "ihre", "bitte", "rechnung", "vielen", "dank", "anbei", "betrag", "mit", "wir", "ihnen", "nicht", "von", "zum", "den"],
    "fr": ["le", "la", "les", "des", "et", "pour", "votre", "vous", "facture", "veuillez", "merci", "montant", "avec", "nous", "une", "est", "cette", "du", "ci-joint"],
    "es": ["el", "los", "las", "para", "su", "por", "favor", "factura", "gracias", "importe", "con", "adjunta", "le", "una", "del", "que", "saludos", "adjuntamos"],
    "it": ["il", "gli", "per", "la", "sua", "fattura", "grazie", "importo", "con", "alla", "di", "che", "in", "allegato", "una", "cordiali", "saluti", "della", "vi"],
    "nl": ["de", "het", "een", "en", "voor", "uw", "factuur", "dank", "bedrag", "met", "wij", "van", "op", "bijgaand", "te", "hierbij", "graag", "vriendelijke"],
    "pl": ["i", "w", "na", "do", "faktura", "dziękujemy", "prosimy", "kwota", "zapłaty", "za", "z", "oraz", "państwa", "się", "nr", "przelew", "pozdrawiamy"],
    "sv": ["och", "för", "din", "er", "faktura", "tack", "betala", "med", "vi", "att", "på", "av", "från", "är", "ert", "belopp", "vänliga", "hälsningar"],
    "pt": ["o", "os", "as", "para", "sua", "por", "favor", "fatura", "obrigado", "valor", "com", "em", "anexo", "uma", "do", "que", "segue", "atenciosamente", "e"],
}  # fmt: skip


def language_of(text: str) -> str:
    """The language of a text by its common words; empty if there is no clear winner."""
    if re.search(r"[\u3040-\u30ff]", text):
        return "ja"
    words = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)?", text.casefold())
    scores = {language: sum(word in known for word in words) for language, known in _STOPWORD_SETS.items()}
    best = max(scores, key=lambda language: (scores[language], language))
    return best if scores[best] >= 3 else ""


_STOPWORD_SETS = {language: frozenset(words) for language, words in STOPWORDS.items()}
