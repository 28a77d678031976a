"""The words that nano's texts are made of, written for this purpose.

Read by `texts` and `episodes`. Data only.
"""

WORDS = """
a able about above accept across act add after again against age agree air all allow almost alone
along already also always among amount an and anger animal answer any apple are area arm around
arrive art as ask at away baby back bad bag ball bank base be bear beat beautiful because become
bed been before begin behind believe below best better between big bird bit black blue board boat
body book both bottom box boy bread break bridge bright bring brother brown build bus business but
buy by call came can car card care carry case cat catch cause cell center chair chance change
check child choose city class clean clear clock close cloud coat cold color come common company
complete copy corner cost could count country course cover create cross cry cup cut dance dark
data date day dead deal dear decide deep did different dinner do doctor does dog done door down
draw dream dress drink drive drop dry during each ear early earth east easy eat edge effect eight
either else empty end energy engine enjoy enough enter even evening ever every example eye face
fact fall family far farm fast father fear feel feet few field fight fill film final find fine
finger finish fire first fish five floor flower fly follow food foot for force forest forget form
forward found four free friend from front fruit full fun game garden gate gave get girl give glad
glass go gold gone good got grass great green ground group grow had hair half hall hand happen
happy hard has hat have he head hear heart heat heavy held help her here high hill him his hit
hold home hope horse hot hour house how hundred hurry ice idea if important in inside into iron is
island it job join jump just keep key kind king kitchen knee know lady lake land language large
last late laugh law lay lead learn least leave left leg less let letter level lie life light like
line list listen little live long look lost lot love low lunch machine made make man many map mark
market matter may me mean measure meat meet men milk mind mine minute miss model modern money
month moon more morning most mother mountain mouth move much music must my name near neck need
never new news next nice night nine no noise none north nose not note nothing now number ocean of
off offer office often oil old on once one only open or orange order other our out outside over
own page paint paper park part party pass past path pay pen people perhaps person phone picture
piece place plan plant play please point poor port possible power press price print problem public
pull push put queen question quick quiet quite race radio rain ran reach read ready real reason
record red remember repeat report rest rich ride right ring rise river road rock roll room round
row rule run sad safe said sail salt same sand sat save saw say school sea season seat second see
seed seem sell send sense sent set seven several shade shall shape she sheep ship shirt shoe shop
short should shoulder show side sign silver simple since sing sister sit six size skin sky sleep
slow small smile snow so soft some son song soon sort sound south space speak special speed spell
spring stand star start state stay step still stone stop store storm story street strong student
such sugar summer sun sure surface sweet swim system table take talk tall taste teach team tell
ten test than thank that the their them then there these they thick thin thing think third this
those though thought three through throw tie time tiny to today together told tomorrow too took
top total touch toward town trade train travel tree trip true try turn two type under until up
upon us use usual valley very view village visit voice wait walk wall want war warm was wash watch
water wave way we wear weather week weight well went were west what wheel when where which while
white who whole why wide wife wild will win wind window wing winter wish with without woman wonder
wood word work world worry would write wrong yard year yellow yes yesterday yet you young your
zero
""".split()

CODE_WORDS = """
args cache city client code color config count country currency date debug depth device email
enabled error file filter flag folder format hash height host id index input item items key kind
label lang lat level limit line lines lon max message method min mode name node note number offset
options order output owner page parent path period pid pin port price priority product prompt
query queue rate reason ref region request response result role room row score sender seed self
session shape sheet size sort source start state status step stop style subject tag target task
text timeout title to token topic total type unit units url user value version view width words x
y year zone
""".split()

ACCENTED_WORDS = """
café déjà naïve façade élève forêt hôtel garçon señor mañana niño corazón jalapeño über Straße
schön Mädchen größer Übung Fuß müde für später Ärger coração irmão João São açúcar Ångström
smörgås fjörd København blåbær žluťoučký kůň příliš łódź żółty ćma gęś çiçek ığdır şeker öğretmen
naïveté crème brûlée résumé touché Zürich
""".split()

VERBS = """
get set list find search create delete update send fetch read write open close start stop check
count add remove book cancel convert translate compute run play move copy plan score rank
""".split()

NOUNS = """
weather time file files user users order orders price stock room table message email note notes
task tasks calendar event route map image page report invoice ticket token query record city
country score song list
""".split()
